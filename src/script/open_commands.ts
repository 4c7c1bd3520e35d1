/**
 * The commands that change which image is open, and how: `open`, `close`, `reopen`.
 *
 * @module
 */

import { BlockError, BlockOptionError } from "../storage/block_error.ts";
import { readArguments } from "./arguments.ts";
import { type Command, CommandError, type Invocation, type Result, SILENT, usageError } from "./command.ts";
import {
  applyBlockOptions,
  applyFlag,
  applyOption,
  CACHE_MODES,
  DEFAULT_SETTINGS,
  type OpenSettings,
  SettingError,
} from "./open_settings.ts";

async function open(invocation: Invocation): Promise<Result> {
  const { session, command, words } = invocation;
  let settings: OpenSettings = DEFAULT_SETTINGS;
  const texts: string[] = [];
  const flag = (letter: string) => (value: string, word: number) => {
    settings = setting(word, () => applyFlag(settings, letter, value)!);
  };
  const flags = Object.fromEntries([..."rsUnCktdi"].map((letter) => [letter, flag(letter)]));
  const args = readArguments<Record<string, void>>(invocation, {
    ...flags,
    o: (text: string) => {
      if (session.imageOpts) throw new CommandError("--image-opts and 'open -o' are mutually exclusive");
      texts.push(text);
    },
  });
  if (args.operands.length > 1) throw usageError(command);
  let name = args.operands.length === 1 ? words[args.operands[0]].text : null;
  if (name !== null && session.imageOpts) {
    texts.push(name);
    name = null;
  }
  await opening(name, args.operands[0] ?? 0, async () => {
    const request = await applyBlockOptions(name, settings, texts);
    await session.open(request.name, request.settings, name);
  });
  return { ...SILENT, json: { name: session.machine.image.name } };
}

async function close({ session }: Invocation): Promise<Result> {
  await session.close();
  return SILENT;
}

async function reopen(invocation: Invocation): Promise<Result> {
  const { session, command } = invocation;
  let settings = session.settings;
  let readOnlyOption = false;
  const args = readArguments<{ c: void; o: void }>(invocation, {
    c: (text, word) => {
      settings = setting(word, () => applyFlag(settings, "t", text)!);
    },
    o: (text, word) => {
      for (const [key, value] of keyValues(text)) {
        readOnlyOption ||= key === "read-only";
        if (!CHANGEABLE.includes(key)) {
          throw new CommandError(`Cannot change the option '${key}'`, { stream: "stderr", word });
        }
        settings = setting(word, () => applyOption(settings, key, value));
      }
    },
  });
  const conflict = (message: string) => new CommandError(message, { stream: "stderr", word: args.wordOf("w") });
  if (args.has("r") && args.has("w")) throw conflict("Only one -r/-w option may be given");
  if (args.operands.length > 0) throw usageError(command, "reopen takes no name", args.operands[0]);
  if (args.has("r") || args.has("w")) {
    if (readOnlyOption) throw conflict("Cannot set both -r/-w and 'read-only'");
    settings = { ...settings, readOnly: args.has("r") };
  }
  await opening(session.machine.image.name, 0, () => session.reopen(settings));
  return SILENT;
}

/** What `reopen -o` can change. */
const CHANGEABLE: readonly string[] = ["read-only", "discard", "cache.direct", "cache.no-flush"];

/** Turns what a setting refuses into the failure of the command. */
function setting<T>(word: number, action: () => T): T {
  try {
    return action();
  } catch (error) {
    if (!(error instanceof SettingError)) throw error;
    throw new CommandError(error.message, { stream: "stderr", word });
  }
}

async function opening(name: string | null, word: number, action: () => Promise<void>): Promise<void> {
  try {
    await action();
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new CommandError(openFailure(name, error), { stream: "stderr", word, hint: error.hint });
  }
}

/** Why an image could not be opened, as qemu-io says it; `null` stands for one that was named by options. */
export function openFailure(name: string | null, error: BlockError): string {
  // What is wrong with the options, or a format that is not known, never came near the file.
  const isAboutOptions = error instanceof BlockOptionError || /^(Unknown driver|Image is not in) /.test(error.reason);
  return `can't open${name === null ? "" : ` device ${name}`}: ${isAboutOptions ? error.reason : error.message}`;
}

function keyValues(text: string): [key: string, value: string][] {
  return text.split(",").filter((part) => part !== "").map((part) => {
    const [, key, value] = /^([^=]*)=?(.*)$/s.exec(part)!;
    return [key, value];
  });
}

/** The commands of this file. */
export const OPEN_COMMANDS: readonly Command[] = [
  {
    name: "open",
    alias: "o",
    args: "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
    summary: "opens an image and boots a guest with it",
    help: [
      "Examples: open -r disk.img",
      "          open -o driver=null-co,size=1G",
      "",
      "  -r  for reading only",
      "  -s  keep writes in memory, and forget them at the end",
      "  -U  take no lock",
      `  -t  cache mode: ${Object.keys(CACHE_MODES).join(", ")}`,
      "  -n  the same as -t none",
      "  -d  what discards do: unmap (default) or ignore",
      "  -o  options of the image, as in driver=qcow2,file.filename=disk.qcow2 instead of a path; the same as in",
      "      --image-opts, of which 'vblk attach --image-opts help' lists all",
      "  -C, -k, -i  accepted; nothing here that they could change",
    ],
    count: [1, Infinity],
    withoutImage: true,
    letters: "snCro:ki:t:d:U",
    run: open,
  },
  { name: "close", alias: "c", summary: "shuts the guest down and closes the image", run: close },
  {
    name: "reopen",
    args: "[(-r|-w)] [-c cache] [-o options]",
    summary: "changes how the image is open; the guest boots again",
    help: [
      "Example: reopen -r",
      "",
      "  -r, -w  for reading only, for reading and writing",
      "  -c  cache mode",
      "  -o  read-only=, discard=, cache.direct=, cache.no-flush=",
    ],
    count: [0, Infinity],
    letters: "c:o:rw",
    run: reopen,
  },
];
