import { type Stats, statSync } from "node:fs";
import { stat } from "node:fs/promises";

/** What else must be true of the path. */
export interface ExistsOptions {
  /** It is a directory, or a symbolic link to one. */
  isDirectory?: boolean;
  /** It is a regular file, or a symbolic link to one. */
  isFile?: boolean;
}

/**
 * Tells whether the path exists. Not for use before another operation on the same path: do that operation and
 * handle its error, because the answer can be out of date when it arrives.
 */
export async function exists(path: string | URL, options: ExistsOptions = {}): Promise<boolean> {
  checkOptions(options);
  try {
    return isWanted(await stat(path), options);
  } catch (error) {
    return answerFor(error);
  }
}

/** The synchronous form of {@linkcode exists}. */
export function existsSync(path: string | URL, options: ExistsOptions = {}): boolean {
  checkOptions(options);
  try {
    return isWanted(statSync(path), options);
  } catch (error) {
    return answerFor(error);
  }
}

function checkOptions({ isDirectory, isFile }: ExistsOptions): void {
  if (isDirectory && isFile) throw new TypeError("isDirectory and isFile must not both be true");
}

function isWanted(stats: Stats, { isDirectory, isFile }: ExistsOptions): boolean {
  return (!isDirectory || stats.isDirectory()) && (!isFile || stats.isFile());
}

function answerFor(error: unknown): boolean {
  const { code } = error as { code?: string };
  if (code === "ENOENT") return false;
  if (code === "EACCES") return true; // the original's answer: there is a folder, closed to this user
  throw error;
}
