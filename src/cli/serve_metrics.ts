/**
 * Metrics of a served device over HTTP.
 *
 * @module
 */

import { isListening } from "../host/unix_address.ts";
import { METRICS_TYPE } from "../serve/metrics.ts";
import { CommandFailure } from "./failure.ts";
import type { MetricsAddress } from "./serve_options.ts";

/** The server. */
export interface MetricsServer {
  /** Where it is: `http://127.0.0.1:9100/metrics`. */
  readonly url: string;
  /** Ends it at once, whoever is connected. */
  stop(): void;
}

/**
 * Starts to serve a text.
 *
 * @param text makes it
 * @throws CommandFailure
 */
export function serveMetrics(address: MetricsAddress, text: () => Promise<string>): MetricsServer {
  const shown = "path" in address ? `unix:${address.path}` : `${address.hostname}:${address.port}`;
  try {
    return listen(address, (request) => answer(request, text));
  } catch (error) {
    if (error instanceof Deno.errors.NotCapable) {
      const name = "path" in address ? "" : `=${shown}`;
      throw new CommandFailure(
        `--metrics ${shown}: Deno was not given the permission to listen`,
        `run again with --allow-net${name} (right after 'deno run')`,
      );
    }
    const { message } = error as Error;
    throw new CommandFailure(`--metrics ${shown}: can't listen there: ${message}`);
  }
}

function listen(address: MetricsAddress, handler: (request: Request) => Promise<Response>): MetricsServer {
  // To wait for those who are connected would let them keep the disk from being closed.
  const end = new AbortController();
  const stop = () => end.abort();
  const options = {
    handler,
    signal: end.signal,
    onListen: () => {},
    onError: () => new Response("it failed\n", { status: 500 }),
  };
  if ("path" in address) {
    makeWay(address.path);
    Deno.serve({ ...options, transport: "unix", path: address.path });
    return {
      url: `unix:${address.path}`,
      stop: () => {
        removeQuietly(address.path);
        stop();
      },
    };
  }
  const server = Deno.serve({ ...options, ...address });
  const { hostname, port } = server.addr;
  const host = hostname.includes(":") ? `[${hostname}]` : hostname;
  return { url: `http://${host}:${port}/metrics`, stop };
}

async function answer(request: Request, text: () => Promise<string>): Promise<Response> {
  if (request.method !== "GET" && request.method !== "HEAD") return new Response("only GET\n", { status: 405 });
  if (new URL(request.url).pathname !== "/metrics") return new Response("try /metrics\n", { status: 404 });
  return new Response(await text(), { headers: { "content-type": METRICS_TYPE } });
}

/** Removes a socket that nobody listens at. */
function makeWay(path: string): void {
  try {
    if (Deno.lstatSync(path).isSocket && !isListening(path)) Deno.removeSync(path);
  } catch (error) {
    if (!(error instanceof Deno.errors.NotFound)) throw error;
  }
}

function removeQuietly(path: string): void {
  try {
    Deno.removeSync(path);
  } catch {
    // It is gone already.
  }
}
