/**
 * How webhooks leave on this machine: workerd compares the address that a name has at the moment it connects, so a name
 * that resolves to a private one, or does so the second time, gets no connection.
 */
export const egress = {
  network: { allow: ['public'], deny: ['private'], tlsOptions: { trustBrowserCas: true } },
}
