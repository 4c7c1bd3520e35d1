/**
 * Runs vblk where the kernel refuses io_uring_setup(2), as a container's seccomp profile does: with the error that its
 * first argument names, for this process only.
 */

import { main } from "../../src/cli/main.ts";

const [errno, ...args] = Deno.args;
const PR_SET_NO_NEW_PRIVS = 38;
const PR_SET_SECCOMP = 22;
const SECCOMP_MODE_FILTER = 2n;
const SYS_io_uring_setup = 425;
const [LOAD, JUMP_IF_EQUAL, RETURN] = [0x20, 0x15, 0x06];
const [ALLOW, ERRNO] = [0x7fff_0000, 0x0005_0000];

/** struct sock_filter: code, two jumps, a number. */
const program = new Uint8Array([
  ...instruction(LOAD, 0, 0, 0),
  ...instruction(JUMP_IF_EQUAL, 0, 1, SYS_io_uring_setup),
  ...instruction(RETURN, 0, 0, ERRNO | Number(errno)),
  ...instruction(RETURN, 0, 0, ALLOW),
]);

function instruction(code: number, ifTrue: number, ifFalse: number, value: number): Uint8Array {
  const bytes = new DataView(new ArrayBuffer(8));
  bytes.setUint16(0, code, true);
  bytes.setUint8(2, ifTrue);
  bytes.setUint8(3, ifFalse);
  bytes.setUint32(4, value, true);
  return new Uint8Array(bytes.buffer);
}

const { prctl } = Deno.dlopen("libc.so.6", {
  prctl: { parameters: ["i32", "u64", "buffer", "u64", "u64"], result: "i32" },
}).symbols;

/** struct sock_fprog: how many instructions, and where. */
const filter = new DataView(new ArrayBuffer(16));
filter.setUint16(0, program.byteLength / 8, true);
filter.setBigUint64(8, Deno.UnsafePointer.value(Deno.UnsafePointer.of(program)), true);
const failed = prctl(PR_SET_NO_NEW_PRIVS, 1n, null, 0n, 0n) !== 0 ||
  prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, new Uint8Array(filter.buffer), 0n, 0n) !== 0;
if (failed) throw new Error("there is no seccomp here");
Deno.exit(await main(args));
