/**
 * When to try again: full jitter, anywhere between nothing and a bound that doubles
 * with every try ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015: of
 * the laws compared there it costs the server the least work). The bound starts anew
 * only after a connection that held, so that one which is accepted and closed again
 * does not reset it.
 */

export interface BackoffOptions {
  /** Bound of the first wait, in milliseconds. */
  firstMs: number;
  /** Largest bound, in milliseconds. */
  mostMs: number;
}

export class Backoff {
  private tries = 0;

  constructor(
    private readonly options: BackoffOptions,
    private readonly random: () => number,
  ) {}

  /** How long to wait before the next try, in milliseconds. */
  next(): number {
    const bound = Math.min(this.options.mostMs, this.options.firstMs * 2 ** this.tries);
    this.tries = Math.min(this.tries + 1, 30);
    return this.random() * bound;
  }

  /** A connection held. */
  reset(): void {
    this.tries = 0;
  }
}
