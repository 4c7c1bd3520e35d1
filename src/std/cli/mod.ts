/**
 * Offline stand-in for `jsr:@std/cli`: the same names and signatures for the functions that are used.
 *
 * @module
 */

export * from "./parse_args.ts";
