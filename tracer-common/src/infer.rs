//! Protocol inference. (being filled)
