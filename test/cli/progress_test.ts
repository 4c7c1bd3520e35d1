import { assertEquals } from "@std/assert";
import { Progress, type ProgressOptions } from "../../src/cli/progress.ts";

function rig(options: ProgressOptions, isTerminal = true) {
  const seen: string[] = [];
  const clock = { ms: 0 };
  const streams = {
    out: (text: string) => seen.push(`out ${text}`),
    err: (text: string) => seen.push(`err ${text}`),
    isTerminal,
    now: () => clock.ms,
  };
  return { progress: new Progress(options, streams), seen, clock };
}

Deno.test("-p prints the percentage as qemu-img does, in steps, and always the first and the last", () => {
  const { progress, seen } = rig({ mode: "percent", step: 2 }, false);
  for (const percent of [0, 1, 2, 2.5, 4.5, 4.6, 100]) progress.set(percent);
  progress.end();
  assertEquals(seen, [
    "out     (0.00/100%)\r",
    "out     (2.50/100%)\r",
    "out     (4.60/100%)\r",
    "out     (100.00/100%)\r",
    "out \n",
  ]);
});

Deno.test("what is added makes at most a hundred percent", () => {
  const { progress, seen } = rig({ mode: "percent", step: 1 });
  for (let i = 0; i < 3; i++) progress.add(40);
  assertEquals(seen.at(-1), "out     (100.00/100%)\r");
});

Deno.test("without -p a terminal gets a bar once the work takes longer than a moment, and it goes away", () => {
  const { progress, seen, clock } = rig({ mode: "bar", step: 1 });
  progress.set(10);
  assertEquals(seen, []);
  clock.ms = 500;
  progress.set(50);
  clock.ms = 550;
  progress.set(51);
  clock.ms = 600;
  progress.set(75);
  progress.end();
  assertEquals(seen, [
    `err \r[${"#".repeat(20)}${" ".repeat(20)}]  50 %`,
    `err \r[${"#".repeat(30)}${" ".repeat(10)}]  75 %`,
    "err \r\x1b[K",
  ]);
});

Deno.test("a pipe gets no bar, and -q no progress at all", () => {
  for (const [mode, isTerminal] of [["bar", false], ["none", true]] as const) {
    const { progress, seen, clock } = rig({ mode, step: 1 }, isTerminal);
    clock.ms = 1000;
    progress.set(50);
    progress.end();
    assertEquals(seen, []);
  }
});
