//! System
