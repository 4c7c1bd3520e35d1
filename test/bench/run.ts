/**
 * All benchmarks: `deno task bench`.
 *
 * @module
 */

import { benchRing } from "./ring.ts";
import { benchStartup } from "./startup.ts";

console.log(
  `Deno ${Deno.version.deno}, ${navigator.hardwareConcurrency} cores. Ratios are medians of alternating rounds.`,
);
await benchRing();
await benchStartup();
