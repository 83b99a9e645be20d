-- Two entries of the audit trail belong to each execution: an index of them would be written at each call and seldom help, because
-- they stand close together. See 0013 in docs/adr.
DROP INDEX audit_by_action;
CREATE INDEX audit_by_action ON audit (action, seq) WHERE action <> 'device.executed';
