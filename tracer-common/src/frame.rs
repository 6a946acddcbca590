//! HTTP/1 framing for the kernel side. (being filled)
