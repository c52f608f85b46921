// Orbit Metrics and your worker under PM2. Copy this file beside your worker and its .venv
// (with orbit-metrics[service] in it), edit the block below, and:
//
//   pm2 start ecosystem.config.cjs
//   pm2 logs
//   pm2 restart all      # nothing is lost
//   pm2 stop all         # the service ends last
//   pm2 save && pm2 startup     # so that all of it comes back with the machine
//   pm2 delete all && pm2 start ecosystem.config.cjs     # after a change of this file
//
// PM2 ends a process by SIGINT, which in Python is KeyboardInterrupt: a run that is under way
// fails by it, unless your worker handles SIGINT and finishes the run.

const { homedir } = require("node:os");
const { join } = require("node:path");

// ---- Yours to edit -------------------------------------------------------------------------
const bin = join(process.env.VIRTUAL_ENV || join(__dirname, ".venv"), "bin");
const worker = "worker.py";
const processes = 4;
const grace = 5; // seconds in which a process of the worker ends, once it got SIGINT
const folder = join(homedir(), ".orbit-metrics"); // for the socket, the numbers, and what waits
// --------------------------------------------------------------------------------------------

// Not left to the default, which may be below $XDG_RUNTIME_DIR: that ends when you log out,
// and PM2 does not. In your shell: export ORBIT_SOCKET=~/.orbit-metrics/worker.sock
const socket = process.env.ORBIT_SOCKET || join(folder, "worker.sock");

// PM2 stops two processes at a time: the service, which waits for those of the worker that it
// knows, and these one by one.
const drain = processes * grace; // seconds

module.exports = {
  apps: [
    {
      // First, so that it is told first to stop: then it waits for the others.
      name: "orbit-metrics",
      script: join(bin, "orbit-metrics"),
      args: "serve",
      interpreter: "none", // else PM2 takes the script for one of Node's
      cwd: __dirname,
      env: {
        ORBIT_SOCKET: socket,
        ORBIT_STATE: process.env.ORBIT_STATE || join(folder, "state"),
        ORBIT_DRAIN_TIMEOUT: drain,
      },
      kill_timeout: (drain + 25) * 1000, // ms; above the drain, and time to publish and commit
      exp_backoff_restart_delay: 100, // ms; longer after each crash, up to 15 s
    },
    {
      name: "worker",
      script: worker,
      interpreter: join(bin, "python"),
      cwd: __dirname,
      exec_mode: "fork", // the other mode, cluster, is for Node alone
      instances: processes,
      env: {
        ORBIT_SOCKET: socket,
        ORBIT_WORKER_NAME: "worker", // the same for all: one worker, of so many processes
        ORBIT_SPOOL_DIR: join(folder, "spool"), // keeps what a killed process has not sent
      },
      kill_timeout: grace * 1000,
      exp_backoff_restart_delay: 100,
      merge_logs: true, // all processes in one file
      time: true, // before each line; those of the service have it already
    },
  ],
};
