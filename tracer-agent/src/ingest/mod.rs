//! Ring records to ordered streams per connection. (room to be filled)
