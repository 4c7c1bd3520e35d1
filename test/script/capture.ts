/** An output that remembers what it was given, and a session on a disk in memory that writes to it. */

import { DEFAULT_SETTINGS } from "../../src/script/open_settings.ts";
import { runLine } from "../../src/script/run.ts";
import { type Output, Session, type SessionOptions } from "../../src/script/session.ts";

/** Remembers lines, in order, those of standard error with a mark. */
export class Capture implements Output {
  readonly lines: string[] = [];

  out(lines: Iterable<string>): void {
    for (const line of lines) this.lines.push(line);
  }

  err(lines: readonly string[]): void {
    this.lines.push(...lines.map((line) => `2> ${line}`));
  }

  /** What came since the last call, with measured times masked. */
  take(): string[] {
    return this.lines.splice(0).map(maskTimes);
  }
}

/** Replaces what was measured. */
export function maskTimes(line: string): string {
  return line
    .replace(/[\d:.]+(?: sec)? \([^)]* ops\/sec\)/, "TIME")
    .replace(/^(\d+,1),[\d:.]+,[\d.]+,[\d.]+$/, "$1,TIME")
    .replace(/^((?:2> )?) *\d+\.\d{3} ms {2}/, "$1TIME  ")
    .replace(/ after \d+ us$/, " after TIME");
}

/** Opens `mem:1M` (or another image) in a session. Close it with `await using`. */
export async function openSession(
  options: Partial<SessionOptions> & { image?: string } = {},
): Promise<TestSession> {
  const capture = new Capture();
  const session = new Session({ output: capture, ...options });
  await session.open(options.image ?? "mem:1M", DEFAULT_SETTINGS);
  return new TestSession(session, capture);
}

/** A session for tests. */
export class TestSession implements AsyncDisposable {
  readonly session: Session;
  readonly capture: Capture;

  constructor(session: Session, capture: Capture) {
    this.session = session;
    this.capture = capture;
  }

  /** Runs lines, and returns what was printed. */
  async run(...lines: string[]): Promise<string[]> {
    for (const [i, line] of lines.entries()) await runLine(this.session, line, `test:${i + 1}`);
    return this.capture.take();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.session.close();
  }
}
