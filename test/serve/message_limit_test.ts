import { assertEquals } from "@std/assert";
import { MessageLimit } from "../../src/serve/message_limit.ts";

Deno.test("MessageLimit lets twenty messages of ten seconds through, and says how many it left out", () => {
  const told: string[] = [];
  let now = 0;
  const limit = new MessageLimit((text) => told.push(text), () => now);
  const say = (count: number) => {
    for (let i = 0; i < count; i++) limit.say("a message");
  };
  say(20);
  assertEquals(told.splice(0).length, 20);
  say(1000);
  assertEquals(told, []);
  now = 10_000;
  say(1);
  assertEquals(told.splice(0), ["note: 1000 more messages were left out", "a message"]);
  say(20);
  limit.tellOmitted();
  assertEquals(told.splice(0).at(-1), "note: 1 more message was left out");
  limit.tellOmitted();
  assertEquals(told, []);
});
