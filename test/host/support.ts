/**
 * What the tests of the host's calls share.
 */

import { libc, libcProblem } from "../../src/host/libc.ts";
import { missing, type Requirement } from "../requires.ts";

const F_GETFD = 1;
const MOST_DESCRIPTORS = 1024;

/** Ignores a test where libc can't be called. */
export function requiresLibc(): Requirement {
  return missing(libcProblem() === null ? "" : "glibc on Linux");
}

/** The descriptors that are open in this process. */
export function openDescriptors(): number[] {
  const found: number[] = [];
  for (let fd = 0; fd < MOST_DESCRIPTORS; fd++) {
    if (libc().fcntl(fd, F_GETFD, 0) >= 0) found.push(fd);
  }
  return found;
}

/** What an action throws; anything but an error is a failure of the test. */
export function errorOf(action: () => unknown): Error {
  try {
    action();
  } catch (error) {
    if (error instanceof Error) return error;
  }
  throw new Error("nothing failed");
}
