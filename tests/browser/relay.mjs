// A network between the browser and the server, on one machine: TCP and UDP of one
// port are handed on to the server's, UDP can be refused, swallowed, or come from
// another address from now on, and what the server says over TCP can be held back.
import { once } from "node:events";
import { createSocket } from "node:dgram";
import { connect, createServer } from "node:net";

/** What becomes of UDP. */
export const UDP = { passed: "passed", swallowed: "swallowed", refused: "refused" };

export class Relay {
  /** Before `port`, on a port of its own. */
  static async create(port, udp = UDP.passed) {
    const relay = new Relay();
    // `tried`: every address that the browser has sent from; `lines`: its sockets, each
    // with the one to the server.
    Object.assign(relay, { target: port, udp, sockets: new Set(), lines: new Map(), flows: new Map(), tried: new Set() });
    relay.holding = false;
    relay.tcp = createServer((near) => relay.connect(near)).listen(0, "127.0.0.1");
    await once(relay.tcp, "listening");
    relay.port = relay.tcp.address().port;
    relay.url = `http://127.0.0.1:${relay.port}`;
    if (udp !== UDP.refused) {
      relay.near = createSocket("udp4");
      relay.near.on("message", (data, from) => relay.upward(data, from));
      relay.near.bind(relay.port, "127.0.0.1");
      await once(relay.near, "listening");
    }
    return relay;
  }

  connect(near) {
    const far = connect(this.target, "127.0.0.1");
    this.lines.set(near, { far, pass: (data) => near.write(data) });
    near.on("close", () => this.lines.delete(near));
    far.on("end", () => near.end());
    for (const [one, other] of [[near, far], [far, near]]) {
      this.sockets.add(one);
      if (one === near || !this.holding) one.pipe(other);
      one.on("error", () => other.destroySoon());
      one.on("close", () => {
        this.sockets.delete(one);
        // What is on its way still arrives: closing now, with something unread, would
        // make the kernel send a reset, which destroys it.
        other.end();
        other.resume();
      });
    }
  }

  /**
   * The line takes nothing more from the server: both kernels' buffers fill, and then
   * the server notices. One connection at a time.
   */
  hold() {
    this.holding = true;
    for (const [near, { far, pass }] of this.lines) {
      far.unpipe(near);
      far.off("data", pass);
      far.pause();
    }
  }

  /** It takes everything again, at once, however fast the browser reads. */
  release() {
    this.holding = false;
    for (const { far, pass } of this.lines.values()) far.on("data", pass).resume();
  }

  /** Each address of the browser has one towards the server. */
  upward(data, from) {
    const name = `${from.address}:${from.port}`;
    this.tried.add(name);
    if (this.udp === UDP.swallowed) return;
    let far = this.flows.get(name);
    if (far === undefined) {
      far = createSocket("udp4");
      far.on("message", (answer) => {
        if (this.near) this.near.send(answer, from.port, from.address);
      });
      // A server that is gone answers with ICMP; that is the browser's to notice.
      far.on("error", () => undefined);
      this.flows.set(name, far);
    }
    far.send(data, this.target, "127.0.0.1", () => undefined);
  }

  /** What the server hears comes from another port, as when a phone changes networks. */
  rebind() {
    const old = [...this.flows.values()];
    this.flows.clear();
    for (const socket of old) socket.close();
    return old.length;
  }

  close() {
    this.rebind();
    this.near?.close();
    this.near = undefined;
    this.tcp.close();
    for (const socket of this.sockets) socket.destroy();
  }
}
