/**
 * Calls what the page brought. What it throws is told as any uncaught error is, and
 * stops neither the events behind it nor the stream that they came on.
 */
export function safely(run: () => void): void {
  try {
    run();
  } catch (failure) {
    queueMicrotask(() => {
      throw failure;
    });
  }
}
