/** Where on the disk the bug of `crashing_thread.ts` is, in bytes. */
export const CRASH_AT = 40960;
