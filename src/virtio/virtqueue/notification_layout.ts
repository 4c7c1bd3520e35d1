/**
 * The arithmetic that decides whether an event index asks for a notification. Driver and device use the same
 * rule in opposite directions (VIRTIO 1.4 §2.7.7.2, §2.7.10.1, §2.8.10).
 *
 * @module
 */

/**
 * Whether moving an index from `before` to `after` passes `event`, all modulo 2^16. The other side asked to be
 * told when the entry numbered `event` is written, so the answer is yes when `before <= event < after`.
 */
export function passesEvent(event: number, after: number, before: number): boolean {
  return ((after - event - 1) & 0xffff) < ((after - before) & 0xffff);
}
