import { assertEquals, assertThrows } from "@std/assert";
import { parseElement } from "../../src/script/chain_syntax.ts";
import { CommandError } from "../../src/script/command.ts";
import { openSession } from "./capture.ts";

/** The lines without the chain, whose addresses are nobody's business here. */
function facts(lines: string[]): string[] {
  return lines.filter((line) => !/desc\[|table\[/.test(line)).map((line) => line.trim());
}

Deno.test("a chain as it should be comes back with its data, wherever it is cut", async () => {
  for (const packed of [false, true]) {
    await using test = await openSession({ machine: { device: { packed } } });
    await test.run("write -qP 0xab 512 512");
    for (
      const elements of [
        "read:1 w:512 status",
        "-i read:1 w:512 status",
        "read:1,cut=8 w:512 status",
        "read:1,cut=1+14 w:512,cut=100 status",
        "-i hex:00000000000000000100000000000000,cut=3 w:512 status",
        "type:0:1 w:512 status",
      ]
    ) {
      const [, status, used, data] = await test.run(`chain ${elements}`);
      assertEquals(status, "  status       OK (0)", elements);
      assertEquals(used, "  used length  513", elements);
      assertEquals(data.includes(`  ${"ab ".repeat(16).trim()} and `), true, data);
    }
  }
});

Deno.test("a chain that breaks the device says which rule it broke; data commands wait for reset", async () => {
  await using test = await openSession();
  assertEquals(facts(await test.run("chain read:0 w:512,next=0 status", "read 0 512", "reset", "read -q 0 512")), [
    "chain of 3 descriptors on queue 0",
    "never came back: the device needs a reset",
    "the driver broke a rule: chain-too-long (VIRTIO 1.4 §2.7.5.3.1)",
    "where        queue 0",
    "expected     a chain has at most as many descriptors as the queue; a longer one is too long or has a loop",
    "found        the chain from descriptor 0 has more than 256",
    "consequence  the device set DEVICE_NEEDS_RESET and does nothing until it is reset",
    "2> vblk: test:2:1: the device needs a reset, and takes no requests until then",
    "2> hint: 'reset' brings it back",
    "device status: ACKNOWLEDGE DRIVER FEATURES_OK DRIVER_OK",
  ]);
});

Deno.test("a chain that fails says why, and the device goes on", async () => {
  const cases: [elements: string, status: string, rule: string][] = [
    ["type:99 status", "UNSUPP (2)", "unknown-type"],
    ["hex:00 status", "IOERR (1)", "short-header"],
    ["read:2048 w:512 status", "IOERR (1)", "beyond-capacity"],
    ["read:0xffffffffffffffff w:512 status", "IOERR (1)", "beyond-capacity"],
    ["read:0 w:100 status", "IOERR (1)", "data-length"],
    ["discard range:0:8:1 status", "UNSUPP (2)", "range-flags"],
    ["zeroes r:17 status", "IOERR (1)", "range-length"],
    ["erase range:0:8 status", "UNSUPP (2)", "not-negotiated"],
  ];
  await using test = await openSession();
  for (const [elements, status, rule] of cases) {
    const lines = facts(await test.run(`chain ${elements}`));
    assertEquals(lines[1], `status       ${status}`, elements);
    assertEquals(lines.find((line) => line.startsWith("the driver"))?.split(" ")[5], rule, elements);
  }
  assertEquals(await test.run("read -q 0 512"), []);
});

Deno.test("with JSON a chain tells what came back and what was broken", async () => {
  await using test = await openSession({ json: true });
  const [line] = await test.run("chain type:99 w:2 status");
  const { returned, status, usedLength, needsReset, data, violations } = JSON.parse(line);
  assertEquals({ returned, status, usedLength, needsReset, data }, {
    returned: true,
    status: "UNSUPP",
    usedLength: 3,
    needsReset: false,
    data: [{ element: "w:2", bytes: "0000" }],
  });
  assertEquals(violations, [{
    rule: "unknown-type",
    section: "5.2.6",
    expected: "the type is one that the device knows",
    found: "the type is 99",
    consequence: "request failed",
  }]);
});

Deno.test("a chain that does not fit the ring is refused before it is sent", async () => {
  await using test = await openSession({ machine: { device: { queueSize: 2 } } });
  assertEquals(await test.run("chain read:0 w:512 status", "chain -q 1 status"), [
    "a chain of 3 descriptors does not fit: 2 are free in queue 0",
    "2> vblk: test:1:1: a chain of 3 descriptors does not fit: 2 are free in queue 0",
    "2> hint: -i puts the descriptors into an indirect table",
    "there is no queue 1: there is only queue 0",
    "2> vblk: test:2:10: there is no queue 1: there is only queue 0",
    "2> hint: --device num-queues=N makes more",
  ]);
});

Deno.test("a chain that has no room in the guest's memory leaves it as it was, and a larger one is not even tried", async () => {
  await using test = await openSession({ machine: { ramBytes: 4 << 20 } });
  for (let i = 0; i < 3; i++) {
    const [failure] = await test.run("chain -i read:0 w:2M w:2M w:2M status");
    assertEquals(failure, "chain failed: Cannot allocate memory");
  }
  const [, status] = await test.run("chain read:0 w:1M status");
  assertEquals(status, "  status       OK (0)");
  assertEquals(await test.run(`chain -i read:0${" w:16M".repeat(5)} status`), [
    "a chain has at most 64 MiB; ,len= can claim more",
    "2> vblk: test:1:35: a chain has at most 64 MiB; ,len= can claim more",
  ]);
});

Deno.test("parseElement() puts overrides into the descriptor as they are", () => {
  assertEquals(parseElement("w:512,addr=0xffffffffffffffff,len=0xffffffff,flags=NEXT|write,next=9", 1)[0].override, {
    address: 0xffff_ffff_ffff_ffffn,
    length: 0xffff_ffff,
    flags: 3,
    next: 9,
  });
  assertEquals(parseElement("status,flags=0x8000", 1)[0].override, { flags: 0x8000 });
});

Deno.test("parseElement() says what it can't read", () => {
  const cases: [text: string, message: string][] = [
    ["frob", "frob is no element of a chain: see 'help chain'"],
    ["status:1", "status:1: see 'help chain'"],
    ["type", "type: see 'help chain'"],
    ["r:x", "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- x"],
    ["r:1=256", "256 is not a valid pattern byte"],
    ["w:17M", "17M: an element has at most 16 MiB; ,len= can claim more"],
    ["hex:123", "123 is not pairs of hexadecimal digits"],
    ["read:-1", "-1 is not a number of 64 bits"],
    ["read:0,constructor=1", "constructor=1 is not an override: addr, len, flags, next, cut"],
    ["read:0,foo=1", "foo=1 is not an override: addr, len, flags, next, cut"],
    ["read:0,flags=FOO", "FOO is no flag: NEXT, WRITE, INDIRECT, or a number"],
    ["read:0,len=0x100000000", "0x100000000 is not a number of 32 bits"],
    ["read:0,cut=16", "read:0: there is nothing to cut"],
    ["read:0,cut=8,next=1", "cut goes with no other override"],
  ];
  for (const [text, message] of cases) {
    assertEquals(assertThrows(() => parseElement(text, 1), CommandError).message, message, text);
  }
});
