import { mkdir } from "node:fs/promises";

/** Makes the directory and its parents unless they exist; rejects when something else has its name. */
export async function ensureDir(dir: string | URL): Promise<void> {
  await mkdir(dir, { recursive: true });
}
