#!/bin/sh
# workerd, but it ends with the process that started it, however that one ended (Linux; elsewhere the supervisor sees to it).
if command -v setpriv >/dev/null 2>&1; then
  exec setpriv --pdeathsig KILL -- "$WORKERD" "$@"
fi
exec "$WORKERD" "$@"
