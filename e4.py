import sys; sys.path.insert(0,"/tmp/wt")
from edit import edit
B="/work/main/framework/"
edit(B+"_runtime/submit.py",
("""        return TaskCancelledError(task_id, reason or None)
""","""        return TaskCancelledError(task_id, f"{task.template.name}() ended because {reason}")
"""))
edit(B+"_runtime/runtime.py",
('"it was cancelled by cancel()"','"cancel() was called for it"'))
edit(B+"actor.py",
("""            "env": environment(options.runtime_env),
            "name\"""","""            "env": environment(options.runtime_env),
            "strategy": strategy_key(options.scheduling_strategy),
            "name\""""))
