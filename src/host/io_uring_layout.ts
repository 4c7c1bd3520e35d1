/**
 * The binary interface of io_uring, as <linux/io_uring.h> has it: offsets in bytes, numbers, flags.
 *
 * @module
 */

/** System calls; x86_64 and aarch64 share them. */
export const SYS = { io_uring_setup: 425, io_uring_enter: 426, io_uring_register: 427 } as const;

/** Size of a submission queue entry, in bytes. */
export const SQE_BYTES = 64;
/** Size of a completion queue entry, in bytes: user_data (8), res (4), flags (4). */
export const CQE_BYTES = 16;

/** Where to map the rings and the submission entries. */
export const IORING_OFF = { SQ_RING: 0, SQES: 0x10000000 } as const;

/** Flags of io_uring_setup(2). */
export const IORING_SETUP = {
  CQSIZE: 1 << 3,
  CLAMP: 1 << 4,
  SUBMIT_ALL: 1 << 7,
  COOP_TASKRUN: 1 << 8,
  TASKRUN_FLAG: 1 << 9,
  SINGLE_ISSUER: 1 << 12,
  DEFER_TASKRUN: 1 << 13,
} as const;

/** Properties of the kernel that io_uring_setup(2) reports. */
export const IORING_FEAT = { SINGLE_MMAP: 1, NODROP: 2, SUBMIT_STABLE: 4, EXT_ARG: 1 << 8, CQE_SKIP: 1 << 11 } as const;

/** Flags of io_uring_enter(2). */
export const IORING_ENTER = { GETEVENTS: 1, EXT_ARG: 8, REGISTERED_RING: 16 } as const;

/** Operations of io_uring_register(2). */
export const IORING_REGISTER = { RING_FDS: 20, UNREGISTER_RING_FDS: 21 } as const;

/** Flags that the kernel sets in the submission ring. */
export const IORING_SQ = { CQ_OVERFLOW: 2, TASKRUN: 4 } as const;

/** Flags of a submission entry. */
export const IOSQE = { CQE_SKIP_SUCCESS: 64 } as const;

/** Flags of a completion entry. */
export const IORING_CQE_F = { MORE: 2 } as const;

/** Operations. */
export const OP = {
  NOP: 0,
  READV: 1,
  WRITEV: 2,
  FSYNC: 3,
  POLL_ADD: 6,
  ASYNC_CANCEL: 14,
  FALLOCATE: 17,
  READ: 22,
  WRITE: 23,
} as const;

/** Syncs the data of a file and what is needed to find it. */
export const IORING_FSYNC_DATASYNC = 1;
/** Goes on polling after the first event. */
export const IORING_POLL_ADD_MULTI = 1;
/** Cancels all that match. */
export const IORING_ASYNC_CANCEL_ALL = 1;

/** struct io_uring_params, and the two structures of offsets in it. */
export const PARAMS = {
  bytes: 120,
  sqEntries: 0,
  cqEntries: 4,
  flags: 8,
  features: 20,
  sq: { head: 40, tail: 44, mask: 48, entries: 52, flags: 56, dropped: 60, array: 64 },
  cq: { head: 80, tail: 84, mask: 88, entries: 92, overflow: 96, cqes: 100, flags: 104 },
} as const;

/** struct io_uring_getevents_arg, and a struct __kernel_timespec behind it. */
export const WAIT_ARGUMENT = { bytes: 24, timespec: 16, seconds: 24, nanoseconds: 32, bytesWithTimespec: 40 } as const;
