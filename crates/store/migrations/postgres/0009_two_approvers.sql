-- A question may want two people. The first word is kept beside the question; the second decides.
ALTER TABLE approvals ADD COLUMN approvers BIGINT NOT NULL DEFAULT 1;
ALTER TABLE approvals ADD COLUMN first_by TEXT;
ALTER TABLE approvals ADD COLUMN first_at BIGINT;
