import { assertEquals } from "@std/assert";
import { readInteger } from "../../src/script/arguments.ts";
import { dumpLines, formatTime, jsonLine, reportLines } from "../../src/script/report.ts";

Deno.test("reportLines() prints what qemu-io prints", () => {
  const transfer = { verb: "read", offset: 512, lengthBytes: 4096, seconds: 0.25 };
  assertEquals(reportLines(transfer, false), [
    "read 4096/4096 bytes at offset 512",
    "4 KiB, 1 ops; 00.25 sec (16 KiB/sec and 4.0000 ops/sec)",
  ]);
  assertEquals(reportLines(transfer, true), ["4096,1,0:00:00.25,16384.000,4.000"]);
});

Deno.test("reportLines() divides by no zero", () => {
  const [, line] = reportLines({ verb: "read", offset: 0, lengthBytes: 0, seconds: 0 }, false);
  assertEquals(line, "0 bytes, 1 ops; 00.00 sec (0 bytes/sec and 1000000.0000 ops/sec)");
});

Deno.test("formatTime() counts hours, minutes and seconds from one second on", () => {
  assertEquals(formatTime(0.004, false), "00.00 sec");
  assertEquals(formatTime(1.5, false), "0:00:01.50");
  assertEquals(formatTime(3725.25, false), "1:02:05.25");
  assertEquals(formatTime(0.5, true), "0:00:00.50");
});

Deno.test("dumpLines() prints sixteen bytes a line, with letters and digits beside", () => {
  const bytes = new TextEncoder().encode("Hello, world! 0123");
  assertEquals([...dumpLines(bytes, 0x200)], [
    "00000200:  48 65 6c 6c 6f 2c 20 77 6f 72 6c 64 21 20 30 31  Hello..world..01",
    "00000210:  32 33  23",
  ]);
  assertEquals([...dumpLines(Uint8Array.of(0xe9, 0xc1, 0x5f), 0)], ["00000000:  e9 c1 5f  ..."]);
  assertEquals([...dumpLines(new Uint8Array(0), 0)], []);
});

Deno.test("jsonLine() prints bytes as hexadecimal digits, however many", () => {
  const bytes = Uint8Array.from({ length: 10_000 }, (_, i) => i);
  assertEquals(
    jsonLine("read", { data: Uint8Array.of(0, 10, 255) }, { more: 1 }),
    '{"command":"read","data":"000aff","more":1}',
  );
  assertEquals(JSON.parse(jsonLine("read", { data: bytes })).data, bytes.toHex());
});

Deno.test("readInteger() reads decimal, hexadecimal and octal as C does", () => {
  const cases: [string, number | null][] = [
    ["0", 0],
    ["170", 170],
    ["0xaa", 170],
    ["0XAA", 170],
    ["0252", 170],
    ["-1", -1],
    ["+7", 7],
    ["", null],
    ["0x", null],
    ["08", null],
    ["1k", null],
    ["x", null],
  ];
  for (const [text, value] of cases) assertEquals(readInteger(text), value, text);
});
