//! What `interlock help` says that belongs to no command.

/// `interlock help exit-codes`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes of every command:

    0  done
    1  an error that has no code of its own
    2  the command line is wrong
    3  not found
    4  signing in is needed: interlock login
    5  not permitted
    6  in conflict with what is there, busy or locked
    7  the parameters are refused
    8  the server cannot be reached, or proves itself with no certificate that counts
   10  the run failed
   11  the run was cancelled
   12  the emergency stop is engaged
   13  verification failed: an audit log, a backup
  124  not over within the time limit; what runs goes on
  130  interrupted

With -o json, jsonl or yaml a failure is a document on standard output (RFC 9457), otherwise
words on standard error. doctor, probe and device serve know 0, 1 and 2 only.
";

/// `interlock help output`.
pub(crate) const OUTPUT: &str = "\
What a command prints on standard output; progress, hints and questions are on standard error:

  -o table   columns for people (unless another form is asked for)
  -o wide    the same with a column for each field
  -o json    one document
  -o jsonl   one document on each line
  -o yaml    the same as json, as YAML 1.2
  -o csv     rows with a line of names (RFC 4180), for spreadsheets
  -o name    ids only, one on each line, for other commands

  --json FIELDS    these fields only; a dot goes into an object or, by number, into a list:
                       interlock runs list --json id,state
                       interlock -o csv --json title,next_due_at task list
  --template TEXT  a line of this text for each thing, with ${expression} where something of it
                   belongs; an expression is JMESPath, as in pipelines. In single quotes, so that
                   the shell leaves it alone:
                       interlock task list --template '${title}: ${status}'
                       interlock runs list --template '${id} ${parameters.wells[0]}'

What has no end (tail, logs --follow, event follow) is one document on each line in every form.
Fields that are not there are null. Characters that a terminal obeys are escaped or left out.
";
