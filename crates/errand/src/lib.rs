//! The program errand: API, pages, command line, settings, wiring.

pub mod admin;
pub mod api;
pub mod app;
pub mod backup;
pub mod cli;
pub mod config;
mod connections;
mod descriptors;
pub mod doctor;
pub mod http;
pub mod isolation;
pub mod listener;
pub mod metrics;
pub mod password;
pub mod secret_key;
mod state;
mod unread;
mod usecase;
mod watch;
pub mod web;
