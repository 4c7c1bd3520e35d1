/**
 * What the tests of io_uring share.
 */

import { ioUringProblem } from "../../src/host/io_uring.ts";
import { missing, type Requirement } from "../requires.ts";

/** Ignores a test where there is no io_uring. */
export function requiresUring(): Requirement {
  return missing(ioUringProblem() === null ? "" : "io_uring");
}
