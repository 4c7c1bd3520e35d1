import { assertThrows } from "@std/assert";
import { passesEvent } from "../../src/virtio/virtqueue/notification_layout.ts";

/** §2.7.7.2, entry by entry: writing the entries from `before` on, `moved` of them, is `event` one of them? */
function model(event: number, before: number, moved: number): boolean {
  for (let i = 0; i < moved; i++) if (((before + i) & 0xffff) === event) return true;
  return false;
}

function compare(rule: typeof passesEvent, event: number, before: number, moved: number): void {
  if (rule(event, (before + moved) & 0xffff, before) !== model(event, before, moved)) {
    throw new Error(`event ${event}, from ${before}, ${moved} entries`);
  }
}

Deno.test("passesEvent() is true exactly when the entry numbered event is among those written, for every event and small moves around the wrap (VIRTIO 1.4 §2.7.7.2)", () => {
  for (const before of [0, 1, 2, 5, 0x7ffe, 0x7fff, 0x8000, 0xfffa, 0xfffd, 0xfffe, 0xffff]) {
    for (let moved = 0; moved <= 8; moved++) {
      for (let event = 0; event < 0x10000; event++) compare(passesEvent, event, before, moved);
    }
  }
});

Deno.test("passesEvent() is true exactly at the borders of moves as large as the largest queue (VIRTIO 1.4 §2.7.7.2, §2.8.10)", () => {
  for (const before of [0, 1, 0x7fff, 0x8000, 0xffff]) {
    for (const moved of [255, 256, 32767, 32768]) {
      for (const near of [before, before + moved, before + 0x8000]) {
        for (let event = near - 3; event <= near + 3; event++) compare(passesEvent, event & 0xffff, before, moved);
      }
    }
  }
});

Deno.test("passesEvent() takes negative positions, which stand for the lap before (VIRTIO 1.4 §2.8.10)", () => {
  for (let size = 1; size <= 5; size++) {
    for (let after = 0; after < size; after++) {
      for (let moved = 0; moved <= size; moved++) {
        for (let event = after - size; event < size; event++) {
          const expected = event >= after - moved && event < after;
          if (passesEvent(event, after, after - moved) !== expected) throw new Error(`${event}, ${after}, ${moved}`);
        }
      }
    }
  }
});

Deno.test("canary: the model of events refuses rules that are off by one", () => {
  const wrong: (typeof passesEvent)[] = [
    (event, after, before) => passesEvent(event + 1, after, before),
    (event, after, before) => event >= before && event < after,
    () => true,
  ];
  for (const rule of wrong) {
    assertThrows(() => {
      for (let event = 0; event < 0x10000; event++) compare(rule, event, 0xfffe, 4);
    }, Error);
  }
});
