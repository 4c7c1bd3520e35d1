/**
 * What a thread of a served image starts with: it owns an io_uring, the image and a device, and returns to Deno's event
 * loop only when it ends.
 *
 * @module
 */

import { serveFirst } from "./first_thread.ts";
import { MessageLimit } from "./message_limit.ts";
import { serveQueues } from "./queue_thread.ts";
import type { QueueThreadStart, ThreadNews, ThreadStart } from "./thread_start.ts";

const scope = globalThis as unknown as {
  onmessage: ((event: MessageEvent<ThreadStart | QueueThreadStart>) => void) | null;
  postMessage(news: ThreadNews): void;
};

const post = (news: ThreadNews) => scope.postMessage(news);
const messages = new MessageLimit((text, hint) => post({ news: "message", text, hint }));
const tell = (text: string, hint?: string) => messages.say(text, hint);

scope.onmessage = async ({ data }) => {
  try {
    if (data.part === "first") await serveFirst(data, tell, post);
    else await serveQueues(data, tell, post);
    messages.tellOmitted();
    post({ news: "ended" });
  } catch (error) {
    const { message, hint, stack } = error as Error & { hint?: string };
    post({ news: "ended", error: isBug(error) ? { message, stack } : { message, hint } });
  }
};

/** Whether it is none of the errors that are made for somebody to read. */
function isBug(error: unknown): boolean {
  return [TypeError, RangeError, ReferenceError, SyntaxError].some((bug) => error instanceof bug);
}
