//! Tests of the program from outside. One binary: each module is a topic, and linking happens once.

mod api_sandboxes;
mod crash_real;
mod engine_crash;
mod engine_life;
mod properties;
mod api_agents;
mod api_keys;
mod coverage;
mod documentation;
mod health;
mod real_server;
mod webhooks;
mod tidy;
