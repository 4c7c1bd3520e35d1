import { assertEquals, assertThrows } from "@std/assert";
import { CommandFailure, UsageError } from "../../src/cli/failure.ts";
import { parseServe, type ServeOptions } from "../../src/cli/serve_options.ts";

function parse(...args: string[]): ServeOptions {
  const options = parseServe(["disk.img", "--vhost-user", "vm.sock", ...args]);
  if (typeof options === "string") throw new Error(options);
  return options;
}

Deno.test("serve: nothing is watched, counted or controlled that was not asked for", () => {
  const { statsSeconds, metrics, trace, controlPath, once, pidFile } = parse();
  const nothing = {
    statsSeconds: null,
    metrics: null,
    trace: null,
    controlPath: null,
    once: false,
    pidFile: undefined,
  };
  assertEquals({ statsSeconds, metrics, trace, controlPath, once, pidFile }, nothing);
});

Deno.test("serve: --metrics takes HOST:PORT, PORT of this machine, and unix:PATH", () => {
  const cases: [text: string, address: ServeOptions["metrics"]][] = [
    ["9100", { hostname: "127.0.0.1", port: 9100 }],
    [":9100", { hostname: "127.0.0.1", port: 9100 }],
    ["0.0.0.0:1", { hostname: "0.0.0.0", port: 1 }],
    ["host.example:65535", { hostname: "host.example", port: 65535 }],
    ["[::1]:0", { hostname: "::1", port: 0 }],
    ["unix:/run/m.sock", { path: "/run/m.sock" }],
  ];
  for (const [text, address] of cases) assertEquals(parse("--metrics", text).metrics, address, text);
  for (const text of ["", "host", "host:", "host:65536", "::1:9100", "1:2:3", "http://a:1"]) {
    assertThrows(() => parse("--metrics", text), UsageError, "not an address");
  }
  assertThrows(() => parse("--metrics", `unix:${"x".repeat(108)}`), CommandFailure, "at most 107 bytes");
});

Deno.test("serve: --stats, --trace and --explain take what they say, and the last one counts", () => {
  assertEquals(parse("--stats").statsSeconds, 0);
  assertEquals(parse("--stats", "--stats=5").statsSeconds, 5);
  for (const text of ["x", "-1", "1.5", ""]) assertThrows(() => parse(`--stats=${text}`), UsageError, "seconds");
  assertEquals([parse("--trace"), parse("--trace=json"), parse("--explain")].map(({ trace }) => trace), [
    "text",
    "json",
    "explain",
  ]);
  // The text form explains what is wrong itself.
  assertEquals(parse("--explain", "--trace=text").trace, "text");
  assertThrows(() => parse("--trace=xml"), UsageError, "the forms are text and json");
});

Deno.test("serve: two sockets have two paths", () => {
  assertThrows(() => parse("--control", "vm.sock"), UsageError, "two paths");
});

Deno.test("serve: help is had without an image", () => {
  assertEquals([parseServe(["--help"]), parseServe(["--device", "help"])], ["help", "device help"]);
});
