//! The network as a guest sees it, against real sockets of this host.

mod connections;
mod datagrams;
mod guest;
mod hostile;
