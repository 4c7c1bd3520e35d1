/**
 * Clusters that nothing will refer to any more: step 5 of the safe order (see write_back.ts). They are free when the file
 * does not say otherwise, and not before.
 *
 * @module
 */

import type { InFlight } from "./in_flight.ts";
import type { Qcow2File } from "./qcow2_file.ts";
import type { Refcounts } from "./refcounts.ts";

/** Clusters that follow each other. */
export interface ClusterRun {
  readonly first: number;
  clusters: number;
}

/** Clusters that will be referred to once less. */
export class GivenUp {
  /** Told of each cluster that has become free. */
  readonly listeners: ((cluster: number) => void)[] = [];
  readonly #file: Qcow2File;
  readonly #refcounts: Refcounts;
  readonly #inFlight: InFlight;
  /** Whether space that is given up is given back to the file. */
  readonly #discards: boolean;
  #runs: ClusterRun[] = [];

  constructor(file: Qcow2File, refcounts: Refcounts, inFlight: InFlight, discards: boolean) {
    this.#file = file;
    this.#refcounts = refcounts;
    this.#inFlight = inFlight;
    this.#discards = discards && file.storage.canUnmap;
  }

  /** Number of runs. */
  get count(): number {
    return this.#runs.length;
  }

  /** One reference less to each of so many clusters. */
  add(first: number, clusters: number): void {
    addRun(this.#runs, first, clusters);
  }

  /** All that are given up so far. Whoever takes them frees them, or puts them back. */
  take(): readonly ClusterRun[] {
    const runs = this.#runs;
    this.#runs = [];
    return runs;
  }

  /** The file may still refer to them. */
  putBack(runs: readonly ClusterRun[]): void {
    this.#runs = [...runs, ...this.#runs];
  }

  /** Counts down what nothing in the file refers to any more. */
  async free(runs: readonly ClusterRun[]): Promise<void> {
    if (runs.length === 0) return;
    // Somebody may still be reading or writing where he was told to before; nobody else may get that place.
    await this.#inFlight.settle();
    for (const { first, clusters } of runs) {
      await this.#file.event("cluster_free");
      const free: ClusterRun[] = [];
      await this.#refcounts.add(first, clusters, -1, (cluster) => {
        this.listeners.forEach((listener) => listener(cluster));
        addRun(free, cluster, 1);
      });
      for (const run of free) await this.#discard(run);
    }
  }

  async #discard({ first, clusters }: ClusterRun): Promise<void> {
    const { clusterBytes, storage, endBytes } = this.#file;
    const length = Math.min(clusters * clusterBytes, endBytes - first * clusterBytes);
    if (this.#discards && length > 0) await storage.discard(first * clusterBytes, length);
  }
}

/** Adds clusters, to the last run where they follow it. */
function addRun(runs: ClusterRun[], first: number, clusters: number): void {
  const last = runs.at(-1);
  if (last !== undefined && last.first + last.clusters === first) last.clusters += clusters;
  else runs.push({ first, clusters });
}
