/**
 * The version, as in deno.json; a test holds the two together. Not imported from there: a compiled program would have
 * to carry that file along.
 *
 * @module
 */

/** Version of vblk. */
export const VERSION = "0.1.0";
