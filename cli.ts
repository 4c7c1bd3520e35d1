/**
 * The command line: `deno run --allow-read --allow-write cli.ts --help`.
 *
 * @module
 */

import { main } from "./src/cli/main.ts";

if (import.meta.main) Deno.exit(await main(Deno.args));
