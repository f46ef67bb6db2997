// Package nofile tells how many descriptors the process may open.
package nofile

// Unlimited is what Limit returns where the system has no such limit, or does
// not tell.
const Unlimited = 1 << 30
