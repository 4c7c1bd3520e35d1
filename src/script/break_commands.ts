/**
 * The commands that hold requests back: `break`, `wait_break`, `resume`, `remove_break`. They need an image that is read
 * through blkdebug.
 *
 * @module
 */

import type { BlkdebugStorage } from "../storage/blkdebug.ts";
import { type Command, CommandError, type Invocation, type Result, SILENT } from "./command.ts";
import { turn } from "./session.ts";

function blkdebug({ session }: Invocation, what: string): BlkdebugStorage {
  if (session.blkdebug !== undefined) return session.blkdebug;
  throw new CommandError(`${what}: Operation not supported`, { hint: "open it as blkdebug::FILE" });
}

function check(found: boolean, what: string): Result {
  if (!found) throw new CommandError(`${what}: No such file or directory`);
  return SILENT;
}

function setBreakpoint(invocation: Invocation): Result {
  const [, event, tag] = invocation.words;
  const what = "Could not set breakpoint";
  return check(blkdebug(invocation, what).setBreakpoint(event.text, tag.text), what);
}

async function removeBreakpoint(invocation: Invocation): Promise<Result> {
  const tag = invocation.words[1].text;
  const what = `Could not remove breakpoint ${tag}`;
  const found = blkdebug(invocation, what).removeBreakpoint(tag);
  await turn();
  return check(found, what);
}

async function resume(invocation: Invocation): Promise<Result> {
  const what = "Could not resume request";
  const found = blkdebug(invocation, what).resume(invocation.words[1].text);
  await turn();
  return check(found, what);
}

async function waitForBreakpoint(invocation: Invocation): Promise<Result> {
  const { session, words } = invocation;
  const tag = words[1].text;
  while (session.blkdebug?.isSuspended(tag) !== true) {
    // qemu-io would wait for ever.
    if (!session.isBusy) {
      const hint = "set a breakpoint, then send a request with aio_read or aio_write";
      throw new CommandError(`no request is in flight that could stop at ${tag}`, { stream: "stderr", word: 1, hint });
    }
    await turn();
    if (!session.interrupts) session.machine.guest.driver.poll();
  }
  return SILENT;
}

const NEEDS = "The image must be open through blkdebug, as in: open -o driver=raw blkdebug::disk.img";

/** The commands of this file. */
export const BREAK_COMMANDS: readonly Command[] = [
  {
    name: "break",
    args: "event tag",
    summary: "holds back the next request that raises an event, under a tag",
    help: ["Example: break write_aio A", "", NEEDS],
    count: [2, 2],
    run: setBreakpoint,
  },
  {
    name: "remove_break",
    args: "tag",
    summary: "removes the breakpoints with a tag, and lets their requests go on",
    help: ["Example: remove_break A", "", NEEDS],
    count: [1, 1],
    run: removeBreakpoint,
  },
  {
    name: "resume",
    args: "tag",
    summary: "lets the request go on that is held back under a tag",
    help: ["Example: resume A", "", NEEDS],
    count: [1, 1],
    run: resume,
  },
  {
    name: "wait_break",
    args: "tag",
    summary: "waits until a request is held back under a tag",
    help: ["Example: wait_break A", "", NEEDS],
    count: [1, 1],
    run: waitForBreakpoint,
  },
];
