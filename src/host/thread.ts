/**
 * What the kernel counts for the thread that asks.
 *
 * @module
 */

import { check, libc } from "./libc.ts";

const RUSAGE_THREAD = 1;
/** struct rusage: two struct timeval, then fourteen longs, of which the last is ru_nivcsw. */
const RUSAGE_LONGS = 18;

let usage: BigInt64Array<ArrayBuffer> | undefined;

/** How often this thread lost its processor to another one without having waited for anything. */
export function involuntarySwitches(): number {
  usage ??= new BigInt64Array(RUSAGE_LONGS);
  const into = usage;
  check("getrusage", () => libc().getrusage(RUSAGE_THREAD, into));
  return Number(into[RUSAGE_LONGS - 1]);
}
