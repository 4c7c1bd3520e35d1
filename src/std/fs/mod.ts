/**
 * Offline stand-in for `jsr:@std/fs`: the same names and signatures for the functions that are used.
 *
 * @module
 */

export * from "./ensure_dir.ts";
export * from "./exists.ts";
