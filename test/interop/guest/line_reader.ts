/** Lines of a stream that goes on: each read waits for the next one, with a limit. */

/** How long something may take that should take moments; a guest without KVM on a busy machine is slow. */
export const PATIENCE_MS = 20_000;

/** Reads lines. */
export class LineReader {
  readonly #reader: ReadableStreamDefaultReader<string>;
  #text = "";
  #ended = false;

  constructor(stream: ReadableStream<Uint8Array>) {
    this.#reader = stream.pipeThrough(new TextDecoderStream() as unknown as TransformStream<Uint8Array, string>)
      .getReader();
  }

  /** Returns the next line without its end, or `null` when the stream has ended. */
  async next(): Promise<string | null> {
    for (;;) {
      const end = this.#text.indexOf("\n");
      if (end >= 0) {
        const line = this.#text.slice(0, end);
        this.#text = this.#text.slice(end + 1);
        return line.replace(/\r$/, "");
      }
      if (this.#ended) return null;
      const { value, done } = await this.#reader.read();
      if (done) this.#ended = true;
      else this.#text += value;
    }
  }

  /** Lets go of the stream. */
  async close(): Promise<void> {
    await this.#reader.cancel().catch(() => {});
  }
}

/** Waits for a promise, and fails when that takes longer than `limitMs`; `what` says what did not come, and why perhaps. */
export async function within<T>(promise: Promise<T>, limitMs: number, what: () => string): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${limitMs / 1000} s: ${what()}`)), limitMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
