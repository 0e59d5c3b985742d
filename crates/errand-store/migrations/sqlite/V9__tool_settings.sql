-- What admins say of a connection's tools, by the tool's offered name: {"mail__search": {"trusted": true, "open_world": false}}.
ALTER TABLE connections ADD COLUMN tool_settings TEXT NOT NULL DEFAULT '{}';
