/**
 * What commands act on: an open image with the machine around it, or nothing.
 *
 * @module
 */

import type { BlkOptions } from "../blk/options.ts";
import { type Image } from "../image/image.ts";
import { blkdebugOf, openBlock, openImage, type OpenOptions, probeWarning } from "../image/open.ts";
import { PolicyImage } from "../image/policy.ts";
import { Machine, type MachineOptions } from "../machine.ts";
import type { BlkdebugStorage } from "../storage/blkdebug.ts";
import { type BlockError, BlockOptionError } from "../storage/block_error.ts";
import type { TraceSink } from "../trace/events.ts";
import { Background } from "./background.ts";
import { CommandError } from "./command.ts";
import { DEFAULT_SETTINGS, type OpenSettings } from "./open_settings.ts";

/** Where lines go. */
export interface Output {
  /** Results. */
  out(lines: Iterable<string>): void;
  /** Messages. */
  err(lines: readonly string[]): void;
}

/** Choices for a session. */
export interface SessionOptions {
  readonly output: Output;
  /** What every machine of this session has. */
  readonly machine?: Pick<MachineOptions, "driver" | "ramBytes"> & { device?: Partial<BlkOptions> };
  /** Takes every stage of every request. */
  readonly trace?: TraceSink;
  /** Print results as JSON, one object a line. */
  readonly json?: boolean;
  /** Whether `trace` explains broken rules to people, so that no command need do it again. */
  readonly explains?: boolean;
  /** Whether the operand of `open` is a set of options instead of a name (`--image-opts`). */
  readonly imageOpts?: boolean;
  /** How files are opened, past the host's page cache or not; by Deno's portable file API when it is not given. */
  readonly openFile?: (direct: boolean) => NonNullable<OpenOptions["openFile"]>;
  /** Called with each machine when it is ready, and again before it goes. */
  readonly onOpen?: (machine: Machine) => void;
  readonly onClose?: (machine: Machine) => void;
}

/** A session: at most one open image at a time. */
export class Session {
  readonly output: Output;
  readonly json: boolean;
  readonly explains: boolean;
  readonly imageOpts: boolean;
  /** Set by `quit`: no further command is run. */
  quitting = false;

  readonly #options: SessionOptions;
  #machine: Machine | null = null;
  /** The image as it was opened, without a policy around it. */
  #image: Image | null = null;
  /** What it was opened by. */
  #name: string | null = null;
  #settings: OpenSettings = DEFAULT_SETTINGS;
  #blkdebug: BlkdebugStorage | undefined;
  #interrupts = true;
  #directNoted = false;
  readonly #background = new Background(this);
  readonly #watchers = new Set<TraceSink>();

  constructor(options: SessionOptions) {
    this.#options = options;
    this.output = options.output;
    this.json = options.json ?? false;
    this.explains = options.explains ?? false;
    this.imageOpts = options.imageOpts ?? false;
  }

  /** Whether an image is open. */
  get isOpen(): boolean {
    return this.#machine !== null;
  }

  /** The machine; commands that need none never ask. */
  get machine(): Machine {
    if (this.#machine === null) throw new CommandError("no file open, try 'help open'", { stream: "stderr" });
    return this.#machine;
  }

  /** How the open image was opened. */
  get settings(): OpenSettings {
    return this.#settings;
  }

  /** Whether the image, or the device by choice, refuses to write. */
  get readOnly(): boolean {
    return this.machine.device.options.readOnly;
  }

  /** Whether the driver takes interrupts; otherwise whoever waits polls. */
  get interrupts(): boolean {
    return this.#interrupts;
  }

  set interrupts(on: boolean) {
    const { transport, guest } = this.machine;
    this.#interrupts = on;
    transport.onInterrupt = on ? () => guest.driver.handleInterrupt() : () => {};
  }

  /**
   * Opens an image and boots a machine with it.
   *
   * @param name `null` when the settings' block options name it
   * @param label what the user called it, for messages
   * @throws CommandError when one is open already; BlockError, RangeError, ProbeError
   */
  async open(name: string | null, settings: OpenSettings, label: string | null = name): Promise<void> {
    if (this.isOpen) throw new CommandError("file open already, try 'help close'", { stream: "stderr" });
    const { format, readOnly, snapshot, share, block } = settings;
    if (share && !readOnly && !snapshot) {
      throw new BlockOptionError(label ?? "", "force-share=on can only be used with read-only images");
    }
    const openFile = this.#options.openFile?.(settings.cache.direct);
    const options = { format, readOnly, snapshot, share, openFile };
    const image = block === undefined && name !== null
      ? await openImage(name, options)
      : await openBlock(name, block ?? new Map(), options, label ?? "");
    // QEMU prints no program's name before it.
    this.output.err(probeWarning(image, name));
    this.#attach(blkdebugOf(image));
    try {
      await this.#boot(image, settings);
      this.#name = name;
    } catch (error) {
      await image.close();
      throw error;
    }
  }

  /** Closes the image, after everything in the background has ended. Nothing happens when none is open. */
  async close(): Promise<void> {
    await this.drain();
    const machine = this.#machine;
    if (machine === null) return;
    this.#machine = null;
    this.#image = null;
    this.#options.onClose?.(machine);
    await machine.close();
  }

  /** Changes how the image is open. The guest boots again; what a disk in memory or a snapshot holds stays. */
  async reopen(settings: OpenSettings): Promise<void> {
    await this.drain();
    const { machine } = this;
    const image = this.#image!;
    if (image.readOnly && !settings.readOnly) {
      const name = this.#name;
      await this.close();
      return await this.open(name, settings);
    }
    this.#options.onClose?.(machine);
    await machine.guest.driver.stop();
    this.#machine = null;
    try {
      if (!image.readOnly) await image.flush();
      await this.#boot(image, settings);
    } catch (error) {
      await image.close();
      throw error;
    }
  }

  /** Ends when `promise` has; polls meanwhile when the driver takes no interrupts. */
  async wait<T>(promise: Promise<T>): Promise<T> {
    let ended = false;
    const watched = promise.finally(() => ended = true);
    // The caller gets the failure from what is returned below.
    watched.catch(() => {});
    while ((!this.#interrupts || this.#blkdebug !== undefined) && this.#machine !== null) {
      await turn();
      if (ended) break;
      this.#releaseStuck();
      if (!this.#interrupts) this.#machine.guest.driver.poll();
    }
    return await watched;
  }

  /**
   * Lets `send` send requests that go on while other commands run; it reports its own failures. Requests of commands
   * that follow each other are made available together: one notification may do for all.
   */
  background(lengthBytes: number, send: () => Promise<void>): Promise<void> {
    return this.#background.add(lengthBytes, send);
  }

  /** Ends when nothing is in the background any more. */
  drain(): Promise<void> {
    return this.#background.drain();
  }

  /** Lets go what was held back. */
  unplug(): void {
    this.#background.unplug();
  }

  /** Shows `sink` what happens until the function that is returned is called. */
  watch(sink: TraceSink): () => void {
    const change = (action: () => void) => {
      action();
      this.#machine?.traceTo(this.#sink());
    };
    change(() => this.#watchers.add(sink));
    return () => change(() => this.#watchers.delete(sink));
  }

  /** Says what the host could not do; the guest sees only that its request failed. */
  hostError(error: BlockError): void {
    this.output.err([`vblk: ${error.message}`, ...error.hint === undefined ? [] : [`hint: ${error.hint}`]]);
  }

  async #boot(image: Image, settings: OpenSettings): Promise<void> {
    const { cache, discard, detectZeroes } = settings;
    this.#noteDirect(cache.direct);
    const policy = {
      ignoreFlush: cache.noFlush,
      ignoreDiscard: !discard,
      detectZeroes: detectZeroes === "off" ? undefined : detectZeroes,
    };
    const isPoliced = policy.ignoreFlush || policy.ignoreDiscard || policy.detectZeroes !== undefined;
    const policed = isPoliced ? new PolicyImage(image, policy) : image;
    const { driver, ramBytes, device } = this.#options.machine ?? {};
    const machine = await Machine.start(policed, {
      driver,
      ramBytes,
      device: { writeback: cache.writeback, ...device, readOnly: settings.readOnly },
      trace: this.#sink(),
      hostError: (error) => this.hostError(error),
    });
    this.#machine = machine;
    this.#image = image;
    this.#settings = settings;
    this.interrupts = !this.#options.machine?.driver?.manualInterrupts;
    this.#options.onOpen?.(machine);
  }

  /** The blkdebug below the open image, if there is one. */
  get blkdebug(): BlkdebugStorage | undefined {
    return this.#blkdebug;
  }

  /** Whether requests are in flight that no command waits for. */
  get isBusy(): boolean {
    return this.#background.isBusy;
  }

  #attach(blkdebug: BlkdebugStorage | undefined): void {
    this.#blkdebug = blkdebug;
    if (blkdebug !== undefined) blkdebug.print = (line) => this.output.out([line]);
  }

  /** A command that waits for what is held back would wait for ever: no other command could let it go. */
  #releaseStuck(): void {
    const tags = this.#blkdebug?.suspended ?? [];
    if (tags.length === 0 || this.machine.guest.driver.inFlightCount > tags.length) return;
    this.output.err([`vblk: note: all requests are held back, so they go on: ${tags.join(", ")}`]);
    for (const tag of tags) this.#blkdebug!.resume(tag);
  }

  /** Who wants to see what happens; with nobody, no event is made. */
  #sink(): TraceSink | undefined {
    const { trace } = this.#options;
    const sinks = trace === undefined ? [...this.#watchers] : [trace, ...this.#watchers];
    return sinks.length === 0 ? undefined : (event) => sinks.forEach((sink) => sink(event));
  }

  #noteDirect(direct: boolean): void {
    if (!direct || this.#directNoted || this.#options.openFile !== undefined) return;
    this.#directNoted = true;
    this.output.err(["vblk: note: Deno's file API can't bypass the host's page cache, so requests go through it"]);
  }
}

/** Lets the event loop go round once. */
export function turn(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, 0));
}
