/**
 * io_uring_setup(2) on kernels of all ages: what to ask for, and what its refusal means.
 *
 * @module
 */

import { EINVAL, ENOSYS, EPERM, HostError } from "./errno.ts";
import { IORING_FEAT, IORING_SETUP, PARAMS, SYS } from "./io_uring_layout.ts";
import { close, HostUnavailable, lastErrno, type Libc } from "./libc.ts";

const MODERN = IORING_SETUP.SUBMIT_ALL | IORING_SETUP.COOP_TASKRUN | IORING_SETUP.TASKRUN_FLAG;

/** What to ask for, best first: what a kernel does not know it refuses. */
const SETUPS = [
  MODERN | IORING_SETUP.SINGLE_ISSUER | IORING_SETUP.DEFER_TASKRUN, // Linux 6.1
  MODERN | IORING_SETUP.SINGLE_ISSUER, // 6.0
  MODERN, // 5.19
  IORING_SETUP.SUBMIT_ALL, // 5.18
  0,
];

/** Results whole (5.5), operations read when they are submitted (5.5), one mapping (5.4), waiting with a time (5.11). */
const NEEDED = IORING_FEAT.SINGLE_MMAP | IORING_FEAT.NODROP | IORING_FEAT.SUBMIT_STABLE | IORING_FEAT.EXT_ARG;

/**
 * Makes a ring with the best that the kernel has.
 *
 * @param params receives what the kernel says of it
 * @returns its descriptor
 * @throws HostUnavailable when there is no io_uring, or too old a one
 */
export function setUp(
  symbols: Libc,
  params: DataView<ArrayBuffer>,
  entries: number,
  completionEntries: number,
): number {
  let errno = EINVAL;
  for (const setup of SETUPS) {
    new Uint8Array(params.buffer).fill(0);
    params.setUint32(PARAMS.flags, setup | IORING_SETUP.CQSIZE | IORING_SETUP.CLAMP, true);
    params.setUint32(PARAMS.cqEntries, completionEntries, true);
    const descriptor = symbols.syscallSetup(BigInt(SYS.io_uring_setup), entries, params);
    if (descriptor >= 0) {
      if ((params.getUint32(PARAMS.features, true) & NEEDED) === NEEDED) return descriptor;
      close(descriptor);
      throw new HostUnavailable("The kernel's io_uring is too old: Linux 5.11 or later is needed");
    }
    errno = lastErrno();
    if (errno !== EINVAL) break;
  }
  throw setUpFailure(errno);
}

function setUpFailure(errno: number): Error {
  if (errno === ENOSYS) {
    return new HostUnavailable(
      "There is no io_uring here: the kernel is older than Linux 5.1, was built without it, or hides it",
      "a container's seccomp profile may be what hides it",
    );
  }
  if (errno === EPERM) {
    return new HostUnavailable(
      "io_uring is forbidden here",
      "look at the sysctl kernel.io_uring_disabled, and at the container's seccomp profile",
    );
  }
  return new HostError("io_uring_setup", errno);
}
