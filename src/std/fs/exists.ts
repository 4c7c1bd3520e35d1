import { statSync } from "node:fs";

/** What else must be true of the path. */
export interface ExistsOptions {
  /** It is a regular file, or a symbolic link to one. */
  isFile?: boolean;
}

/**
 * Tells whether the path exists. Not for use before another operation on the same path: do that operation and
 * handle its error, because the answer can be out of date when it arrives.
 */
export function existsSync(path: string | URL, options: ExistsOptions = {}): boolean {
  try {
    const stats = statSync(path);
    return !options.isFile || stats.isFile();
  } catch (error) {
    const { code } = error as { code?: string };
    if (code === "ENOENT") return false;
    if (code === "EACCES") return true; // the original's answer: there is a folder, closed to this user
    throw error;
  }
}
