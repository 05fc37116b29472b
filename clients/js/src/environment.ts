/**
 * Everything the library takes from its surroundings: time, timers, randomness, the
 * page's state, memory, and the transports. The logic reads none of these by itself,
 * so tests run it under virtual time from a seed.
 */

import type { Dial, TransportName } from "./transport.js";
import { dialWebSocket } from "./transport_websocket.js";
import { dialWebTransport } from "./transport_webtransport.js";

/** What the page tells: the network came or went, the page was shown or hidden. */
export type PageChange = "online" | "offline" | "visible" | "hidden";

export interface Environment {
  /**
   * Milliseconds on a clock that only goes forward. Its origin is the same for all
   * that share `memory`.
   */
  now(): number;
  /** Uniform in [0, 1), with 53 bits: ids of events are made of it. */
  random(): number;
  setTimer(run: () => void, ms: number): unknown;
  clearTimer(timer: unknown): void;
  /** Whether the machine has a network, as far as is known. */
  online(): boolean;
  /** Whether nobody looks at the page. */
  hidden(): boolean;
  /** Calls `heard` at each change; returns what ends that. */
  watch(heard: (change: PageChange) => void): () => void;
  /** Where the transport that worked is remembered. */
  memory: { getItem(key: string): string | null; setItem(key: string, value: string): void } | undefined;
  /** How to connect; a transport that is missing here is not tried. */
  dials: Partial<Record<TransportName, Dial>>;
}

function random(): number {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2)) as unknown as [number, number];
  return ((high >>> 6) * 2 ** 27 + (low >>> 5)) / 2 ** 53;
}

/** Storage that is forbidden throws when it is looked at. */
function sessionMemory(): Environment["memory"] {
  try {
    return globalThis.sessionStorage;
  } catch {
    return undefined;
  }
}

/** The page this runs in, or whatever has the same globals. */
export function surroundings(): Environment {
  const page = typeof document === "undefined" ? undefined : document;
  const dials: Environment["dials"] = {};
  if (typeof WebSocket !== "undefined") dials.websocket = dialWebSocket;
  if (typeof WebTransport !== "undefined") dials.webtransport = dialWebTransport;
  return {
    now: () => performance.timeOrigin + performance.now(),
    random,
    setTimer: (run, ms) => setTimeout(run, ms),
    clearTimer: (timer) => clearTimeout(timer as number),
    online: () => globalThis.navigator?.onLine !== false,
    hidden: () => page?.hidden === true,
    watch(heard) {
      const online = () => heard("online");
      const offline = () => heard("offline");
      const visibility = () => heard(page?.hidden ? "hidden" : "visible");
      globalThis.addEventListener?.("online", online);
      globalThis.addEventListener?.("offline", offline);
      page?.addEventListener("visibilitychange", visibility);
      return () => {
        globalThis.removeEventListener?.("online", online);
        globalThis.removeEventListener?.("offline", offline);
        page?.removeEventListener("visibilitychange", visibility);
      };
    },
    memory: sessionMemory(),
    dials,
  };
}
