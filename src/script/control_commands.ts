/**
 * The commands about the session itself: `help`, `quit`, `sleep`, `abort`, `sigraise`.
 *
 * @module
 */

import { readNumber, readSize } from "./arguments.ts";
import { type Command, CommandError, type Invocation, type Result, SILENT, usageLine } from "./command.ts";
import { allCommands, findCommand } from "./registry.ts";

function help({ words }: Invocation): Result {
  if (words.length < 2) {
    const commands = allCommands();
    return {
      text: [...commands.map((command) => usageLine(command)), "", "Use 'help commandname' for extended help."],
      json: { commands: commands.map(({ name, alias, args, summary }) => ({ name, alias, args, summary })) },
    };
  }
  const name = words[1].text;
  const command = findCommand(name);
  if (command === undefined) throw new CommandError(`command ${name} not found`, { word: 1 });
  const lines = command.help === undefined ? [] : ["", ...command.help.map((line) => line && ` ${line}`), ""];
  const { args, summary } = command;
  return { text: [usageLine(command, name), ...lines], json: { name, args, summary, help: command.help ?? [] } };
}

function quit({ session }: Invocation): Result {
  session.quitting = true;
  return SILENT;
}

async function sleep({ words }: Invocation): Promise<Result> {
  const end = performance.now() + readNumber(words[1].text, 1);
  // A timer takes 31 bits of milliseconds; a longer one would end at once.
  for (let left = end - performance.now(); left > 0; left = end - performance.now()) {
    await new Promise((resolve) => setTimeout(resolve, Math.min(left, 2 ** 31 - 1)));
  }
  return SILENT;
}

/** Ends the process as a crash would: nothing is flushed, no image is closed. */
async function abort(): Promise<Result> {
  return await raise(6);
}

/** Signals are numbered up to this. */
const LAST_SIGNAL = 64;

async function sigraise({ words }: Invocation): Promise<Result> {
  const { text } = words[1];
  const signal = readSize(text, 1);
  if (signal > LAST_SIGNAL) {
    throw new CommandError(`signal argument '${text}' is too large to be a valid signal`, { word: 1 });
  }
  return await raise(signal);
}

async function raise(signal: number): Promise<Result> {
  if (signal === 0) return SILENT;
  try {
    // Loaded when it is needed: Node's modules would double the time that vblk takes to start.
    const { default: process } = await import("node:process");
    process.kill(process.pid, signal);
  } catch {
    // To send signals Deno wants --allow-run. The exit code is what a shell makes of the signal.
    Deno.exit(128 + signal);
  }
  return SILENT;
}

/** The commands of this file. */
export const CONTROL_COMMANDS: readonly Command[] = [
  {
    name: "help",
    alias: "?",
    args: "[command]",
    summary: "explains one command, or lists them all",
    count: [0, 1],
    withoutImage: true,
    run: help,
  },
  {
    name: "quit",
    alias: "q",
    summary: "ends the session",
    count: [0, Infinity],
    withoutImage: true,
    run: quit,
  },
  {
    name: "sleep",
    args: "milliseconds",
    summary: "waits",
    count: [1, 1],
    withoutImage: true,
    run: sleep,
  },
  {
    name: "abort",
    summary: "ends the program as a crash would, with nothing flushed",
    withoutImage: true,
    run: abort,
  },
  {
    name: "sigraise",
    args: "signal",
    summary: "sends the program a signal, by number",
    help: ["Example: sigraise 15", "", "Without --allow-run it exits as if the signal had ended it."],
    count: [1, 1],
    withoutImage: true,
    run: sigraise,
  },
];
