/**
 * Runs in a worker: makes an engine there, and reports how many results it got.
 */

import { OP } from "../../src/host/io_uring_layout.ts";
import { UringEngine } from "../../src/storage/uring_engine.ts";

const engine = new UringEngine({ drivenBy: "owner" });
let count = 0;
const owner = engine.register(() => count++);
for (let i = 0; i < 1000; i++) engine.submitAny(owner, i, OP.NOP, -1, 0, 0, 0);
engine.waitUntil(() => count === 1000);
engine.close();
(globalThis as unknown as { postMessage(message: number): void }).postMessage(count);
