/**
 * A script in TypeScript or JavaScript: a module whose default export is a function of the guest and the machine.
 *
 * @module
 */

import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { BlockError } from "../storage/block_error.ts";
import type { Session } from "./session.ts";

/**
 * Imports a module and calls its default export with `(guest, machine)`.
 *
 * @returns whether it succeeded; if not, why is on standard error
 */
export async function runModule(session: Session, path: string): Promise<boolean> {
  const url = pathToFileURL(resolve(path)).href;
  try {
    Deno.statSync(path);
    const module = await import(url);
    if (typeof module.default !== "function") {
      session.output.err([
        `vblk: ${path}: the module's default export is not a function`,
        "hint: export default async function (guest, machine) { ... }",
      ]);
      return false;
    }
    const { machine } = session;
    await session.wait(Promise.resolve(module.default(machine.guest, machine)));
    return true;
  } catch (error) {
    session.output.err(failureLines(path, url, error));
    return false;
  }
}

/** What went wrong, and where in the module: not in what the module called. */
function failureLines(path: string, url: string, error: unknown): string[] {
  if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.NotCapable) {
    const { kind, reason } = BlockError.from(error, { path, operation: "open" });
    const hint = kind === "not-capable" ? [`hint: run again with --allow-read (right after 'deno run')`] : [];
    return [`vblk: ${path}: ${reason}`, ...hint];
  }
  if (!(error instanceof Error)) return [`vblk: ${path}: it threw ${String(error)}`];
  // A syntax error has its place in the message, everything else in the stack.
  const [first] = error.message.split("\n");
  const text = `${error.message}\n${error.stack ?? ""}`;
  const at = text.indexOf(`${url}:`);
  const place = at < 0 ? "" : /^(:\d+:\d+)?/.exec(text.slice(at + url.length))![0];
  const message = first.replaceAll(url, path).replace(/ at \S+:\d+:\d+$/, "");
  // What Deno says of a module that it can't load is a TypeError whatever the reason.
  const loading = error instanceof TypeError && /^(SyntaxError|Module not found|Unable to load)/.test(first);
  const name = error.name === "Error" || loading ? "" : `${error.name}: `;
  const untranslated = Deno.build.standalone && error.name === "SyntaxError" && /ts$/.test(path);
  const hint = untranslated
    ? ["hint: a compiled vblk may not know TypeScript's types: use JavaScript, or 'deno run'"]
    : [];
  return [`vblk: ${path}${place}: ${name}${message}`, ...hint];
}
