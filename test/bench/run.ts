/**
 * All benchmarks: `deno task bench`.
 *
 * @module
 */

import { benchConvert } from "./convert.ts";
import { benchQcow2 } from "./qcow2.ts";
import { benchRing } from "./ring.ts";
import { benchStartup } from "./startup.ts";

console.log(
  `Deno ${Deno.version.deno}, ${navigator.hardwareConcurrency} cores. Ratios are medians of alternating rounds.`,
);
await benchRing();
await benchStartup();
await benchQcow2();
await benchConvert();
