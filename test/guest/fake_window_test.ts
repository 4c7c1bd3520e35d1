import { assertEquals } from "@std/assert";
import { MMIO, type MmioRegister } from "../../src/transport/mmio/mmio_layout.ts";
import { type Access, driverProblems } from "./fake_window.ts";

type Step = [register: MmioRegister, value: number] | [register: MmioRegister];

/** A write for each pair, a read for each single register; `Config` reads and writes are given as accesses. */
function accesses(steps: readonly (Step | Access)[], answers: Partial<Record<MmioRegister, number>> = {}): Access[] {
  return steps.map((step) => {
    if (!Array.isArray(step)) return step;
    const [register, value] = step;
    const offset = MMIO[register];
    if (value === undefined) return { kind: "read", offset, width: 4, value: answers[register] ?? 0 };
    return { kind: "write", offset, width: 4, value };
  });
}

const FEATURES: Step[] = [["DeviceFeaturesSel", 1], ["DeviceFeatures"], ["DriverFeaturesSel", 1], [
  "DriverFeatures",
  1,
]];
const GOOD: Step[] = [
  ["Status", 0],
  ["Status"],
  ["Status", 1],
  ["Status", 3],
  ...FEATURES,
  ["Status", 11],
  ["QueueSel", 0],
  ["QueueSizeMax"],
  ["QueueSize", 8],
  ["QueueDescLow", 4096],
  ["QueueReady", 1],
];
const LIVE: Step[] = [...GOOD, ["Status", 15], ["QueueNotify", 0], ["InterruptStatus"], ["InterruptACK", 1]];
const ANSWERS = { DeviceFeatures: 1, QueueSizeMax: 8, InterruptStatus: 1 };

Deno.test("canary: the judge of drivers has nothing to say of a good one", () => {
  assertEquals(driverProblems(accesses(LIVE, ANSWERS)), []);
});

Deno.test("canary: the judge of drivers reports each way to break a rule at the registers", () => {
  const config = (kind: "read" | "write", at: number, width: 1 | 2 | 4): Access => ({
    kind,
    offset: MMIO.Config + at,
    width,
    value: 0,
  });
  const narrow: Access = { kind: "read", offset: MMIO.Status, width: 1, value: 0 };
  const nowhere: Access = { kind: "read", offset: 0x018, width: 4, value: 0 };
  const cases: [(Step | Access)[], string][] = [
    [[narrow], "read Status 0x0: not 32 bits (§4.2.2.2)"],
    [[nowhere], "read 24 0x0: no register is there (§4.2.2.2)"],
    [[["SHMSel", 0]], "write SHMSel 0x0: shared memory is not expected (§4.2.3.1.1)"],
    [[["QueueSel"]], "read QueueSel 0x0: wrong direction (§4.2.2.2)"],
    [[["Version", 1]], "write Version 0x1: wrong direction (§4.2.2.2)"],
    [[["Status", 0], ["Status", 1]], "write Status 0x1: the reset is not complete (§2.4.2)"],
    [[["DeviceFeatures"]], "read DeviceFeatures 0x1: DeviceFeaturesSel was not written before (§4.2.2.2)"],
    [[["DriverFeatures", 0]], "write DriverFeatures 0x0: DriverFeaturesSel was not written before (§4.2.2.2)"],
    [
      [...FEATURES, ["DriverFeatures", 3]],
      "write DriverFeatures 0x3: a feature is accepted that was not offered (§2.2.1)",
    ],
    [[...GOOD, ["DriverFeatures", 1]], "write DriverFeatures 0x1: features are accepted after FEATURES_OK (§3.1.1)"],
    [[["Status", 1], ["Status", 2]], "write Status 0x2: a status bit is cleared (§2.1.1)"],
    [[["Status", 1], ["Status", 129], ["Status", 131]], "write Status 0x83: the driver goes on after FAILED (§2.1.1)"],
    [[["Status", 1], ["Status", 9]], "write Status 0x9: steps are left out (§3.1.1)"],
    [[["Status", 3]], "write Status 0x3: steps are left out (§3.1.1)"],
    [[["Status", 1], ["Status", 17]], "write Status 0x11: SUSPEND is set (§3.4.1)"],
    [[["QueueSel", 0], ["QueueSizeMax"], ["QueueSize", 9]], "write QueueSize 0x9: more than QueueSizeMax (§4.2.2.2)"],
    [[...GOOD, ["QueueDriverHigh", 0]], "write QueueDriverHigh 0x0: the queue is ready (§4.2.2.2)"],
    [[["QueueSel", 0], ["QueueReady", 1]], "write QueueReady 0x1: a queue is set up before FEATURES_OK (§3.1.1)"],
    [[...GOOD, ["QueueReset", 1]], "write QueueReset 0x1: RING_RESET was not negotiated (§2.6.1)"],
    [[...GOOD, ["QueueNotify", 0]], "write QueueNotify 0x0: a notification before DRIVER_OK (§3.1.1)"],
    [[...LIVE, ["QueueNotify", 1]], "write QueueNotify 0x1: the queue is not ready (§2.9)"],
    [[["InterruptACK", 1]], "write InterruptACK 0x1: InterruptStatus was not read before (§4.2.3.4.1)"],
    [[["InterruptStatus"], ["InterruptACK", 4]], "write InterruptACK 0x4: undefined bits are set (§4.2.2.2)"],
    [
      [["InterruptStatus"], ["InterruptACK", 2]],
      "write InterruptACK 0x2: what did not happen is acknowledged (§4.2.2.2)",
    ],
    [[config("read", 33, 1)], "read Config+33/1 0x0: no field of the configuration is there (§4.2.2.2)"],
    [[config("read", 0, 2)], "read Config+0/2 0x0: not the field's width (§4.2.2.2)"],
    [[config("read", 8, 4)], "read Config+8/4 0x0: the field's feature was not offered (§2.5.1)"],
    [[config("write", 0, 4)], "write Config+0/4 0x0: the configuration is written before FEATURES_OK (§3.1.1)"],
    [[config("read", 32, 1)], "read Config+32/1 0x0: writeback is read before FEATURES_OK (§5.2.5.1)"],
  ];
  for (const [steps, problem] of cases) {
    const problems = driverProblems(accesses(steps, ANSWERS));
    assertEquals([problem, problems.includes(problem)], [problem, true]);
  }
});
